-- Changes a stream if it is still as the caller loaded it.
-- KEYS: stream, events, replay, the four of its unlabelled, queue, images, tally, blobs of what it has learnt by now
--       and before, one and the same where that stays
-- ARGV: what is asked for, as JSON (`Store.commit` makes it); then its `fields` fields and values in turn, types and
--       data of its `events` events in turn, the answer, and the values of its unlabelled
-- Replies 'done', 'conflict', 'unknown', or 'incomplete' when a piece of what it has learnt is missing.
local asked = cjson.decode(ARGV[1])
local generation, version, updated_at, learnt_tag, done =
  unpack(redis.call('HMGET', KEYS[1], 'generation', 'version', 'updated_at', 'learnt_tag', 'done'))
if not generation then return 'unknown' end
if generation ~= asked.generation then return 'conflict' end
-- The client sends a command again when it lost the reply: what has been done is a success.
done = done or ''
if string.find(done, asked.operation, 1, true) then return 'done' end
-- A version may stand for two states after a failover (see store_load.lua).
if version ~= asked.version or updated_at ~= asked.updated_at or (learnt_tag or '') ~= asked.learnt_tag then
  return 'conflict'
end
if asked.learnt_pieces and redis.call('HLEN', KEYS[11]) ~= asked.learnt_pieces then return 'incomplete' end

-- First the write that is refused when memory is out, so that nothing is written by halves.
local first_event = 2 + 2 * asked.fields
local answer = first_event + 2 * asked.events
local last_operations = string.sub(done, -7 * #asked.operation) .. asked.operation
redis.call('HSET', KEYS[1], 'done', last_operations, unpack(ARGV, 2, first_event - 1))
if asked.learnt_pieces then
  redis.call('PERSIST', KEYS[11])
  -- Whoever reads the one before can finish.
  if KEYS[12] ~= KEYS[11] then redis.call('PEXPIRE', KEYS[12], asked.read_on_ms) end
end
for i = first_event, answer - 1, 2 do
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', asked.events_kept, '*', 'type', ARGV[i], 'data', ARGV[i + 1])
end
if asked.forget_unlabelled then redis.call('UNLINK', unpack(KEYS, 4, 7)) end
if asked.unlabelled then keep_unlabelled(asked.unlabelled, answer + 1) end
if #asked.used + #asked.dropped > 0 then
  take_out(KEYS[8], KEYS[9], KEYS[10], 'used', asked.used)
  take_out(KEYS[8], KEYS[9], KEYS[10], 'dropped', asked.dropped)
  redis.call('HSET', KEYS[10], 'taught_at', asked.now)
  redis.call('HDEL', KEYS[10], 'failed')
end
if asked.replay then
  redis.call('HSET', KEYS[3], 'generation', generation, 'digest', asked.replay.digest, 'answer', ARGV[answer])
  redis.call('PEXPIRE', KEYS[3], asked.replay.ttl_ms)
end
if asked.idle_ttl_ms ~= '' then
  redis.call('PEXPIRE', KEYS[1], asked.idle_ttl_ms)
  redis.call('PEXPIRE', KEYS[2], asked.idle_ttl_ms)
  redis.call('PEXPIRE', KEYS[11], asked.idle_ttl_ms)
end
return 'done'
