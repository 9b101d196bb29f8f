-- Puts down a piece of a blob, for a while, for whoever is about to make it a record's.
-- KEYS: blob, record   ARGV: field of the record that names its blob, tag of this one, place, piece, how long, in ms
-- A piece sent again for a lost reply may come when the blob is the record's: it must not end that one's life.
if redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[2] then return end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
