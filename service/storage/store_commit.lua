-- Changes a stream if it is still as the caller loaded it.
-- KEYS: stream, events, replay
-- ARGV: generation, version, operation id, idle TTL in ms or '',
--       event type or '', event data, events kept, digest or '', answer, replay TTL in ms,
--       then fields and values in turn
-- Replies 'done', 'conflict' or 'unknown'.
local generation, version, done = unpack(redis.call('HMGET', KEYS[1], 'generation', 'version', 'done'))
if not generation then return 'unknown' end
if generation ~= ARGV[1] then return 'conflict' end
-- The client sends a command again when it lost the reply: what has been done is a success.
done = done or ''
if string.find(done, ARGV[3], 1, true) then return 'done' end
if version ~= ARGV[2] then return 'conflict' end

-- First the write that is refused when memory is out, so that nothing is written by halves.
local last_operations = string.sub(done, -7 * #ARGV[3]) .. ARGV[3]
redis.call('HSET', KEYS[1], 'done', last_operations, unpack(ARGV, 11))
if ARGV[5] ~= '' then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'type', ARGV[5], 'data', ARGV[6])
end
if ARGV[8] ~= '' then
  redis.call('HSET', KEYS[3], 'generation', generation, 'digest', ARGV[8], 'answer', ARGV[9])
  redis.call('PEXPIRE', KEYS[3], ARGV[10])
end
if ARGV[4] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return 'done'
