-- Takes samples out of a stream's queue, and counts them for their edges as 'used' or 'dropped'. Stands before the
-- scripts that do so. The id of a sample is its edge's, a slash, and its own.
local function take_out(queue, images, tally, fate, ids)
  for _, id in ipairs(ids) do
    if redis.call('ZREM', queue, id) == 1 then
      local edge, bytes = string.match(id, '^[^/]*'), redis.call('HSTRLEN', images, id)
      redis.call('HINCRBY', tally, 'bytes', -bytes)
      redis.call('HINCRBY', tally, 'bytes:' .. edge, -bytes)
      redis.call('HDEL', images, id)
      redis.call('HINCRBY', tally, fate .. ':' .. edge, 1)
    end
  end
end
