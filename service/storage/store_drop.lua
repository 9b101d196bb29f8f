-- Takes samples out of a stream's queue without learning from them.
-- KEYS: queue, images, tally   ARGV: ids
take_out(KEYS[1], KEYS[2], KEYS[3], 'dropped', ARGV)
