-- Gives up what a partition may hold and does not. KEYS: meta. ARGV: birth. Gives its quota and the number of that.
local state = call('HMGET', meta, 'quota', 'quota_number')
local quota, number = tonumber(state[1] or 0), tonumber(state[2] or 0)
if quota > count then
    quota, number = count, number + 1
    call('HSET', meta, 'quota', text(quota), 'quota_number', text(number))
end
return {text(quota), text(number)}
