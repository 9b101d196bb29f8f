-- Keeps an answer under an idempotency key, for the stream of this generation alone.
-- KEYS: stream, replay   ARGV: generation, digest, answer, TTL in ms
if redis.call('HGET', KEYS[1], 'generation') == ARGV[1] then
  redis.call('HSET', KEYS[2], 'generation', ARGV[1], 'digest', ARGV[2], 'answer', ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
