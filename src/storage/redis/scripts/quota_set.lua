-- Sets in a partition the quota that quota_raise returned. KEYS: meta. ARGV: birth, the quota, its number.
local number = tonumber(call('HGET', KEYS[1], 'quota_number') or 0)
if tonumber(ARGV[3]) > number then
    call('HSET', KEYS[1], 'quota', ARGV[2], 'quota_number', ARGV[3])
end
return 1
