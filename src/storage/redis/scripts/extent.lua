-- Tells how far the log reaches.
-- KEYS: meta, log. ARGV: registry id, a position or nothing.
-- Gives the end of the log, the id of the first entry that is held, the count of sessions, and the id of the entry at the
-- position, '' for an entry that is not there.
local head = redis.call('HMGET', KEYS[1], 'end', 'count')
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
local at = ARGV[2] ~= '' and redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2], 'COUNT', 1)[1]
return {head[1], oldest and oldest[1] or '', head[2], at and at[1] or ''}
