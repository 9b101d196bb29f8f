-- Notes what is heard of an edge, if there is one.
-- KEYS: edge   ARGV: bytes up, bytes down, then fields and values in turn
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('HINCRBY', KEYS[1], 'bytes_up', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'bytes_down', ARGV[2])
return 1
