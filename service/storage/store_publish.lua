-- Keeps what edges were sent of a version, and forgets the oldest of what was kept.
-- KEYS: releases   ARGV: precision, tag, release, how many to keep, TTL in ms
local order = 'order:' .. ARGV[1]
local tags = {}
for tag in string.gmatch(redis.call('HGET', KEYS[1], order) or '', '%S+') do
  if tag == ARGV[2] then return end
  tags[#tags + 1] = tag
end
redis.call('HSET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], ARGV[3])
tags[#tags + 1] = ARGV[2]
while #tags > tonumber(ARGV[4]) do
  redis.call('HDEL', KEYS[1], ARGV[1] .. ':' .. table.remove(tags, 1))
end
redis.call('HSET', KEYS[1], order, table.concat(tags, ' '))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
