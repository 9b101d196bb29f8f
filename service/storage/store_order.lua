-- Puts ids into a sorted set by time, in the order given. Stands before the scripts that do so.
-- Redis orders equal times by id, so each is a microsecond later. Counted whole: a fraction of a second added to unix
-- time is rounded, and two times may be one.
local function put_in_order(key, now, ids)
  local microseconds = math.floor(now * 1e6)
  for i, id in ipairs(ids) do
    redis.call('ZADD', key, string.format('%.6f', (microseconds + i - 1) / 1e6), id)
  end
end
