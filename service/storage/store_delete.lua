-- Deletes a stream with all that waits for it and was made of it, and tells those who watch it.
-- KEYS: stream, events, then others to delete   ARGV: how long the last events stay readable, in ms
-- Replies 1, or 0 when there is no such stream.
local learnt_tag = redis.call('HGET', KEYS[1], 'learnt_tag') or ''
if redis.call('UNLINK', KEYS[1]) == 0 then return 0 end
redis.call('UNLINK', KEYS[1] .. ':' .. learnt_tag, unpack(KEYS, 3))
redis.call('XADD', KEYS[2], '*', 'type', 'deleted', 'data', '{}')
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return 1
