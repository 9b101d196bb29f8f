-- Makes a stream unless it is there.
-- KEYS: stream, events, then what a stream of this id that expired may have left behind
-- ARGV: idle TTL in ms or '', size of the state, then fields and values in turn
-- Replies nil when it was made, else the same fields of the stream that is there.
if redis.call('EXISTS', KEYS[1]) == 1 then
  local names = {}
  for i = 3, #ARGV, 2 do names[#names + 1] = ARGV[i] end
  return redis.call('HMGET', KEYS[1], unpack(names))
end

redis.call('HSET', KEYS[1], 'state_bytes', ARGV[2], unpack(ARGV, 3))
redis.call('UNLINK', unpack(KEYS, 3))
-- What remains of the events of a stream deleted under this id stays readable, and is this stream's past.
redis.call('PERSIST', KEYS[2])
if ARGV[1] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
end
return nil
