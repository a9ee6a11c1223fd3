-- Finds the buckets that may have sessions under leases.
-- KEYS: meta, log, attached leases, closed leases, slots, sessions held by slot, for each lease its set of buckets.
-- ARGV: birth, the position and mark of a point that the caller has read ('' if it asks only about closed leases), the
-- leases.
-- Returns the end of the log and its mark, and for each lease its slot ('' if it is not closed here), the number of
-- sessions under it, and its set of buckets as numbers or bits: see apply.lua. Errors: OTHER if that point is not in
-- this log, UNFIT if a key was lost, because then this partition may not know all its leases.
if ARGV[2] ~= '' then
    if mark_at(tonumber(ARGV[2])) ~= ARGV[3] then
        return redis.error_reply('OTHER the log has another history')
    elseif not fits(KEYS[3], KEYS[4], KEYS[5], KEYS[6]) then
        return redis.error_reply('UNFIT a key of the partition was lost')
    end
end
local found = {last, mark}
for i = 4, #ARGV do
    local closed, set = call('HGET', KEYS[4], ARGV[i]), ''
    local slot = closed or string.match(call('HGET', KEYS[3], ARGV[i]) or '', '%d+')
    if slot then
        local is_bits = call('TYPE', KEYS[3 + i]).ok == 'string'
        set = is_bits and call('GET', KEYS[3 + i]) or call('SMEMBERS', KEYS[3 + i])
    end
    found[#found + 1] = closed or ''
    -- The count is negative only if somebody else has written to the counts. Then there may be sessions.
    found[#found + 1] = slot and math.abs(tonumber(call('HGET', KEYS[6], slot) or 0)) or 0
    found[#found + 1] = set
end
return found
