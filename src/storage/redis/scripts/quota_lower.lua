-- Gives up room that a partition does not use. KEYS: meta. ARGV: birth. Returns its quota and the quota's number.
local state = call('HMGET', meta, 'quota', 'quota_number')
local quota, number = tonumber(state[1] or 0), tonumber(state[2] or 0)
if quota > count then
    quota, number = count, number + 1
    call('HSET', meta, 'quota', text(quota), 'quota_number', text(number))
end
return {text(quota), text(number)}
