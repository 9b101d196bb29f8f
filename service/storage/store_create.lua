-- Makes a stream unless it is there.
-- KEYS: stream, events, blob of what it has learnt, then what a stream of this id that expired may have left behind
-- ARGV: idle TTL in ms or '', size of the state, pieces of what it has learnt, then fields and values in turn
-- Replies nil when it was made, the same fields of the stream that is there, or 'incomplete' when a piece is missing.
if redis.call('EXISTS', KEYS[1]) == 1 then
  local names = {}
  for i = 4, #ARGV, 2 do names[#names + 1] = ARGV[i] end
  return redis.call('HMGET', KEYS[1], unpack(names))
end
if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[3]) then return 'incomplete' end

redis.call('HSET', KEYS[1], 'state_bytes', ARGV[2], unpack(ARGV, 4))
redis.call('UNLINK', unpack(KEYS, 4))
redis.call('PERSIST', KEYS[3])
-- What remains of the events of a stream deleted under this id stays readable, and is this stream's past.
redis.call('PERSIST', KEYS[2])
if ARGV[1] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[3], ARGV[1])
end
return nil
