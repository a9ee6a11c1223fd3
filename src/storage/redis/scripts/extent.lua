-- Returns how far the log reaches, and whether the partition's keys are consistent.
-- KEYS: meta, log, attached leases, closed leases, slots, sessions held by slot; in the first partition also leases,
-- deadlines and ids.
-- ARGV: birth, a position or ''.
-- Returns the time, the registry's id (only the first partition has it), the end of the log and its mark, the start of
-- the log and its mark, the session count, the mark at the position ('' if the log does not hold it), and 1, or 0 if a
-- key was lost.

-- This stores the clock even while there are no changes. If Redis refuses the write, the stored time is returned.
local is_stored = type(pcall('HDEL', meta, '')) ~= 'table'
    and type(pcall('HSET', meta, 'time', text(now), 'wall', text(wall))) ~= 'table'
local start, start_mark = last, mark
local oldest = call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if oldest then
    local final, changes = string.match(oldest[1], '^(%d+)-(%d+)$')
    start, start_mark = final - changes, string.sub(oldest[2][2], 1, 8)
end
local known = call('HMGET', meta, 'id', 'live')
local is_whole = fits(KEYS[3], KEYS[4], KEYS[5], KEYS[6])
if KEYS[7] and is_whole then
    local live = tonumber(known[2])
    -- Leases that are ending also have an id, so there may be more ids than leases.
    is_whole = live == call('HLEN', KEYS[7]) and live == call('ZCARD', KEYS[8]) and live <= call('ZCARD', KEYS[9])
end
local at = ARGV[2] ~= '' and mark_at(tonumber(ARGV[2]))
local told = is_stored and now or tonumber(head[2])
return {told, known[1] or '', last, mark, start, start_mark, count, at or '', is_whole and 1 or 0}
