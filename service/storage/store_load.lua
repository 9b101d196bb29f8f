-- Reads a stream, counts it as used, and looks for an answer given under an idempotency key.
-- KEYS: stream, events, replay
-- ARGV: generation, version, updated_at and learnt_tag of the record that the caller has at hand,
--       then fields to read beside `learnt`
-- Replies nil when there is no such stream, else
--   {fields, or nil when the caller's are current; learnt, or nil when the caller's is; replay or nil}
local generation, version, updated_at, learnt_tag, idle_ttl_s =
  unpack(redis.call('HMGET', KEYS[1], 'generation', 'version', 'updated_at', 'learnt_tag', 'idle_ttl_s'))
if not generation then return nil end

if idle_ttl_s ~= '' then
  local idle_ttl_ms = string.format('%.0f', math.ceil(tonumber(idle_ttl_s) * 1000))
  redis.call('PEXPIRE', KEYS[1], idle_ttl_ms)
  redis.call('PEXPIRE', KEYS[2], idle_ttl_ms)
end

-- After a failover that lost writes a version may stand for two states; the times tell them apart.
local fields, learnt = false, false
if generation ~= ARGV[1] or version ~= ARGV[2] or updated_at ~= ARGV[3] then
  fields = redis.call('HMGET', KEYS[1], unpack(ARGV, 5))
  if (learnt_tag or '') ~= ARGV[4] then learnt = redis.call('HGET', KEYS[1], 'learnt') or '' end
end

local owner, digest, answer = unpack(redis.call('HMGET', KEYS[3], 'generation', 'digest', 'answer'))
local replay = owner == generation and {digest, answer}
return {fields, learnt, replay}
