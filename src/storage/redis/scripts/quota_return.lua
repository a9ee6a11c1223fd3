-- Notes what quota_lower gave. KEYS: meta of the first partition, quotas. ARGV: birth, partition, its quota, the number
-- of that. Gives what the register says then.
local quota, number = string.match(call('HGET', KEYS[2], ARGV[2]) or '0 0', '^(%d+) (%d+)$')
if tonumber(ARGV[4]) >= tonumber(number) then
    call('HSET', KEYS[2], ARGV[2], ARGV[3] .. ' ' .. ARGV[4])
    return {ARGV[3], ARGV[4]}
end
return {quota, number}
