-- Reads a stream, counts it as used, and looks for an answer given under an idempotency key.
-- KEYS: stream, events, replay
-- ARGV: generation, version and updated_at of the record that the caller has at hand, then fields to read
-- Replies nil when there is no such stream, else {fields, or nil when the caller's are current; replay or nil}
local generation, version, updated_at, learnt_tag, idle_ttl_s =
  unpack(redis.call('HMGET', KEYS[1], 'generation', 'version', 'updated_at', 'learnt_tag', 'idle_ttl_s'))
if not generation then return nil end

if idle_ttl_s ~= '' then
  local idle_ttl_ms = string.format('%.0f', math.ceil(tonumber(idle_ttl_s) * 1000))
  redis.call('PEXPIRE', KEYS[1], idle_ttl_ms)
  redis.call('PEXPIRE', KEYS[2], idle_ttl_ms)
  redis.call('PEXPIRE', KEYS[1] .. ':' .. (learnt_tag or ''), idle_ttl_ms)
end

-- After a failover that lost writes a version may stand for two states; the times tell them apart.
local fields = false
if generation ~= ARGV[1] or version ~= ARGV[2] or updated_at ~= ARGV[3] then
  fields = redis.call('HMGET', KEYS[1], unpack(ARGV, 4))
end

local owner, digest, answer = unpack(redis.call('HMGET', KEYS[3], 'generation', 'digest', 'answer'))
local replay = owner == generation and {digest, answer}
return {fields, replay}
