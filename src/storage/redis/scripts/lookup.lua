-- Looks up which leases sessions are under.
-- KEYS: meta, attached leases, slots, for each session its bucket. ARGV: birth, the position up to which the caller has
-- read, the sessions (16 bytes each).
-- Returns for each session a letter and a lease (8 bytes): '-' there is no such session, '0' it is under no lease, 'S' it is
-- under that lease, 'Z' that lease is closed here, so the first partition knows whether it has ended.
-- Error: BEHIND if this Redis lacks what the caller has read.
if last < tonumber(ARGV[2]) then
    return redis.error_reply('BEHIND the log ends at ' .. text(last))
end
local NO_LEASE, found = string.rep('\0', 8), {}
for i = 4, #KEYS do
    local slot = call('HGET', KEYS[i], string.sub(ARGV[3], (i - 4) * 16 + 1, (i - 3) * 16))
    local letter, lease = slot and '0' or '-', nil
    if slot and slot ~= '' then
        lease = call('HGET', KEYS[3], slot)
        if lease then
            letter = call('HEXISTS', KEYS[2], lease) == 1 and 'S' or 'Z'
        end
    end
    found[i - 3] = letter .. (lease or NO_LEASE)
end
return table.concat(found)
