-- Takes a snapshot away.
-- KEYS: snapshot   Replies the id of the stream that it was taken of, '' for none, or nil when there is no snapshot.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local stream, tag = unpack(redis.call('HMGET', KEYS[1], 'stream', 'state_tag'))
redis.call('UNLINK', KEYS[1], KEYS[1] .. ':' .. (tag or ''))
return stream or ''
