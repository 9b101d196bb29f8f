-- Counts a failed attempt to learn from samples, drops them when it was the last, and tells those who watch.
-- KEYS: queue, images, tally, events, stream
-- ARGV: now, attempts allowed, events kept, data of the event `alarm`, then ids
-- Replies how many attempts have failed.
if redis.call('EXISTS', KEYS[5]) == 0 then return 0 end
local failed = redis.call('HINCRBY', KEYS[3], 'failed', 1)
redis.call('HSET', KEYS[3], 'taught_at', ARGV[1])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[3], '*', 'type', 'alarm', 'data', ARGV[4])
if failed >= tonumber(ARGV[2]) then
  take_out(KEYS[1], KEYS[2], KEYS[3], 'dropped', {unpack(ARGV, 5)})
  redis.call('HDEL', KEYS[3], 'failed')
end
return failed
