-- Makes a snapshot unless there is one.
-- KEYS: snapshot, its state   ARGV: tag and pieces of its state, then fields and values in turn
-- Replies 'done', 'exists', or 'incomplete' when a piece is missing.
if redis.call('EXISTS', KEYS[1]) == 1 then
  -- The client sends a command again when it lost the reply: what has been done is a success.
  return redis.call('HGET', KEYS[1], 'state_tag') == ARGV[1] and 'done' or 'exists'
end
if redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[2]) then return 'incomplete' end

redis.call('HSET', KEYS[1], 'state_tag', ARGV[1], unpack(ARGV, 3))
redis.call('PERSIST', KEYS[2])
return 'done'
