-- Gives up what a partition may hold and does not. KEYS: meta. ARGV: registry id. Gives its quota and the number of that.
local head = redis.call('HMGET', KEYS[1], 'quota', 'quota_number', 'count')
local quota, number = tonumber(head[1] or 0), tonumber(head[2] or 0)
if quota > tonumber(head[3]) then
    quota, number = tonumber(head[3]), number + 1
    redis.call('HSET', KEYS[1], 'quota', string.format('%.0f', quota), 'quota_number', string.format('%.0f', number))
end
return {string.format('%.0f', quota), string.format('%.0f', number)}
