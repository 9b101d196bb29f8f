-- Keeps what came of a request that changed nothing, for the stream of this generation alone.
-- KEYS: stream, events, replay, the four of its unlabelled
-- ARGV: what is asked for, as JSON (`Store.remember` makes it); then the answer, and the values of its unlabelled
local asked = cjson.decode(ARGV[1])
if redis.call('HGET', KEYS[1], 'generation') ~= asked.generation then return end
if asked.replay then
  redis.call('HSET', KEYS[3], 'generation', asked.generation, 'digest', asked.replay.digest, 'answer', ARGV[2])
  redis.call('PEXPIRE', KEYS[3], asked.replay.ttl_ms)
end
if asked.unlabelled then keep_unlabelled(asked.unlabelled, 3) end
