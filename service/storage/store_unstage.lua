-- Takes away a blob that did not become a record's.
-- KEYS: blob, record   ARGV: field of the record that names its blob, tag of this one
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then redis.call('UNLINK', KEYS[1]) end
