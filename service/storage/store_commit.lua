-- Changes a stream if it is still as the caller loaded it.
-- KEYS: stream, events, replay; where samples are taken out of its queue also queue, images, tally
-- ARGV: generation, version, operation id, idle TTL in ms or '',
--       digest or '', answer, replay TTL in ms, events kept, number of events,
--       number of samples that are used, number that are dropped, now,
--       then types and data of events in turn, then ids of samples, then fields and values in turn
-- Replies 'done', 'conflict' or 'unknown'.
local generation, version, done = unpack(redis.call('HMGET', KEYS[1], 'generation', 'version', 'done'))
if not generation then return 'unknown' end
if generation ~= ARGV[1] then return 'conflict' end
-- The client sends a command again when it lost the reply: what has been done is a success.
done = done or ''
if string.find(done, ARGV[3], 1, true) then return 'done' end
if version ~= ARGV[2] then return 'conflict' end

-- First the write that is refused when memory is out, so that nothing is written by halves.
local first_sample = 13 + 2 * tonumber(ARGV[9])
local first_dropped = first_sample + tonumber(ARGV[10])
local first_field = first_dropped + tonumber(ARGV[11])
local last_operations = string.sub(done, -7 * #ARGV[3]) .. ARGV[3]
redis.call('HSET', KEYS[1], 'done', last_operations, unpack(ARGV, first_field))
for i = 13, first_sample - 1, 2 do
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[8], '*', 'type', ARGV[i], 'data', ARGV[i + 1])
end
if KEYS[4] then
  take_out(KEYS[4], KEYS[5], KEYS[6], 'used', {unpack(ARGV, first_sample, first_dropped - 1)})
  take_out(KEYS[4], KEYS[5], KEYS[6], 'dropped', {unpack(ARGV, first_dropped, first_field - 1)})
  redis.call('HSET', KEYS[6], 'taught_at', ARGV[12])
  redis.call('HDEL', KEYS[6], 'failed')
end
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[3], 'generation', generation, 'digest', ARGV[5], 'answer', ARGV[6])
  redis.call('PEXPIRE', KEYS[3], ARGV[7])
end
if ARGV[4] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return 'done'
