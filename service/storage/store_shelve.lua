-- Makes a snapshot unless there is one.
-- KEYS: snapshot, its state   ARGV: tag and pieces of its state, then fields and values in turn
-- Replies 'done', 'exists', or 'conflict' when a piece is missing.
local tag = redis.call('HGET', KEYS[1], 'state_tag')
-- The client sends a command again when it lost the reply: what has been done is a success.
if tag then return tag == ARGV[1] and 'done' or 'exists' end
if redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[2]) then return 'conflict' end

redis.call('HSET', KEYS[1], 'state_tag', ARGV[1], unpack(ARGV, 3))
redis.call('PERSIST', KEYS[2])
return 'done'
