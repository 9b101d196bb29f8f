-- Keeps predictions whose labels may come, and labels that came. Stands before the scripts that do so.
-- KEYS from the fourth on: entries, order, bytes
-- asked (`UnlabelledShelf.command` makes it): ids, now, since when they are kept, most, most_bytes, ttl_ms
-- ARGV from `first_value` on: what is kept under these ids
local function keep_unlabelled(asked, first_value)
  local entries, order, bytes = unpack(KEYS, 4, 6)
  local held = tonumber(redis.call('GET', bytes) or '0')
  for i, id in ipairs(asked.ids) do
    local value = ARGV[first_value + i - 1]
    held = held + #value - redis.call('HSTRLEN', entries, id)
    redis.call('HSET', entries, id, value)
  end
  put_in_order(order, asked.now, asked.ids)
  local kept = redis.call('ZCARD', order)
  local expired = redis.call('ZCOUNT', order, '-inf', string.format('(%.6f', asked.since))
  while kept > 0 and (expired > 0 or kept > asked.most or held > asked.most_bytes) do
    local oldest = redis.call('ZPOPMIN', order)[1]
    held = held - redis.call('HSTRLEN', entries, oldest)
    redis.call('HDEL', entries, oldest)
    kept, expired = kept - 1, expired - 1
  end
  redis.call('SET', bytes, held, 'PX', asked.ttl_ms)
  redis.call('PEXPIRE', entries, asked.ttl_ms)
  redis.call('PEXPIRE', order, asked.ttl_ms)
end
