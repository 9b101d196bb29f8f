-- Keeps predictions whose labels may come, and labels that came. Stands before the scripts that do so.
-- A label is small and says that its image has been counted: however many predictions come, it stays.
-- KEYS from the fourth on: entries, order and bytes of the predictions, order of the labels
-- asked (`UnlabelledShelf.command` makes it): predictions, labels, now, since when they are kept, most, most_bytes,
--        most_labels, ttl_ms
-- ARGV from `first_value` on: what is kept of the predictions and of the labels, in turn
local function keep_unlabelled(asked, first_value)
  local entries, order, bytes, labels = unpack(KEYS, 4, 7)
  local held = tonumber(redis.call('GET', bytes) or '0')
  local function no_more(id)
    if redis.call('ZSCORE', order, id) then held = held - redis.call('HSTRLEN', entries, id) end
  end
  local function keep(ids, place, other, first)
    for i, id in ipairs(ids) do
      no_more(id)
      redis.call('HSET', entries, id, ARGV[first + i - 1])  -- First what is refused when memory is out.
      redis.call('ZREM', other, id)
    end
    put_in_order(place, asked.now, ids)
  end
  local function forget_old(place, is_too_much)
    local expired = redis.call('ZCOUNT', place, '-inf', string.format('(%.6f', asked.since))
    while redis.call('ZCARD', place) > 0 and (expired > 0 or is_too_much()) do
      local oldest = redis.call('ZRANGE', place, 0, 0)[1]
      no_more(oldest)
      redis.call('ZREM', place, oldest)
      redis.call('HDEL', entries, oldest)
      expired = expired - 1
    end
  end
  keep(asked.predictions, order, labels, first_value)
  for i in ipairs(asked.predictions) do held = held + #ARGV[first_value + i - 1] end
  keep(asked.labels, labels, order, first_value + #asked.predictions)
  forget_old(order, function() return redis.call('ZCARD', order) > asked.most or held > asked.most_bytes end)
  forget_old(labels, function() return redis.call('ZCARD', labels) > asked.most_labels end)
  redis.call('SET', bytes, held, 'PX', asked.ttl_ms)
  for _, key in ipairs({entries, order, labels}) do redis.call('PEXPIRE', key, asked.ttl_ms) end
end
