-- Puts an edge's samples that were not seen before into its stream's queue: all of them, or none.
-- KEYS: queue, images, tally, known
-- ARGV: edge, now, most samples, most bytes, ids known at most, since when they are known, '1' where other edges share
--       the queue, then ids and images in turn
-- Replies how many were new, or -1 when they do not fit; then how many wait, their bytes, and how many are the edge's.
local ids, images, bytes, seen = {}, {}, 0, {}
for i = 8, #ARGV, 2 do
  if not seen[ARGV[i]] and not redis.call('ZSCORE', KEYS[4], ARGV[i]) then
    seen[ARGV[i]] = true
    ids[#ids + 1], images[#images + 1] = ARGV[i], ARGV[i + 1]
    bytes = bytes + #ARGV[i + 1]
  end
end
local waiting = redis.call('ZCARD', KEYS[1])
local waiting_bytes = tonumber(redis.call('HGET', KEYS[3], 'bytes') or '0')
local function tallied(name) return tonumber(redis.call('HGET', KEYS[3], name .. ':' .. ARGV[1]) or '0') end
local mine = tallied('received') - tallied('used') - tallied('dropped')
if #ids == 0 then return {0, waiting, waiting_bytes, mine} end
local room = tonumber(ARGV[3]) - waiting - #ids
local room_bytes = tonumber(ARGV[4]) - waiting_bytes - bytes
local fits = room >= 0 and room_bytes >= 0
if ARGV[7] == '1' and mine > 0 then
  -- No more than is left to others. What waits since before bytes were tallied by edge left its tally below 0.
  fits = fits and mine + #ids <= room and math.max(0, tallied('bytes')) + bytes <= room_bytes
end
if not fits then return {-1, waiting, waiting_bytes, mine} end

put_in_order(KEYS[1], tonumber(ARGV[2]), ids)
for i, id in ipairs(ids) do
  redis.call('HSET', KEYS[2], id, images[i])
  redis.call('ZADD', KEYS[4], ARGV[2], id)
end
redis.call('HINCRBY', KEYS[3], 'bytes', bytes)
redis.call('HINCRBY', KEYS[3], 'bytes:' .. ARGV[1], bytes)
redis.call('HINCRBY', KEYS[3], 'received:' .. ARGV[1], #ids)
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. ARGV[6])
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -tonumber(ARGV[5]) - 1)
return {#ids, waiting + #ids, waiting_bytes + bytes, mine + #ids}
