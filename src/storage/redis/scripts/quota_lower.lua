-- Lowers a partition's quota to the number of its sessions. KEYS: meta. ARGV: birth. Returns the quota and its number.
local state = call('HMGET', meta, 'quota', 'quota_number')
local quota, number = tonumber(state[1] or 0), tonumber(state[2] or 0)
if quota > count then
    quota, number = count, number + 1
    call('HSET', meta, 'quota', text(quota), 'quota_number', text(number))
end
return {text(quota), text(number)}
