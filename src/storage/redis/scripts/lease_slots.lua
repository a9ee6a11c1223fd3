-- Returns the leases of slots.
-- KEYS: meta, attached leases, slots. ARGV: birth, the position up to which the caller has read, the slots.
-- Returns the number of the latest closing here, and for each slot '' if it is unknown, or a letter and the lease (8
-- bytes): 'S' if the lease is attached here, 'Z' if it is closed here (then only the first partition knows whether it
-- has ended). Error: BEHIND if this Redis lacks changes that the caller has read.
if last < tonumber(ARGV[2]) then
    return redis.error_reply('BEHIND the log ends at ' .. text(last))
end
local told = {call('HGET', meta, 'closing')}
for i, lease in ipairs(call('HMGET', KEYS[3], unpack(ARGV, 3))) do
    told[i + 1] = lease and (call('HEXISTS', KEYS[2], lease) == 1 and 'S' or 'Z') .. lease or ''
end
return told
