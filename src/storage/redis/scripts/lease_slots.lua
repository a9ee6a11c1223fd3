-- Tells which leases slots are of.
-- KEYS: meta, attached leases, slots. ARGV: birth, the position up to which the caller has read, the slots.
-- Returns the number of the newest closing here, and for each slot a letter and a lease (8 bytes): 'S' that lease is
-- attached here, 'Z' it is closed here, so the first partition knows whether it has ended. '' if the slot is unknown.
-- Error: BEHIND if this Redis lacks what the caller has read.
if last < tonumber(ARGV[2]) then
    return redis.error_reply('BEHIND the log ends at ' .. text(last))
end
local told = {call('HGET', meta, 'closing')}
for i, lease in ipairs(call('HMGET', KEYS[3], unpack(ARGV, 3))) do
    told[i + 1] = lease and (call('HEXISTS', KEYS[2], lease) == 1 and 'S' or 'Z') .. lease or ''
end
return told
