-- Marks a lease as ending. ARGV: birth, until when the script is good, lease, ms for which the caller has it, a random number, until when the lease may be
-- noted as ended.
-- Gives 1 and what is known of it; 0 and what is known of it when somebody else is ending it; -1 and '' when it is gone.
local problem = late(ARGV[2])
if problem then
    return problem
end
local ended = call('HGET', KEYS[4], ARGV[3])
if ended then
    return string.sub(ended, 1, 1) == 'm' and {0, ended} or {-1, ''}
end
if call('HEXISTS', KEYS[2], ARGV[3]) == 0 then
    return {-1, ''}
end
call('HDEL', meta, '')
return {1, end_lease(ARGV[3], 'v', ARGV[4], ARGV[5], ARGV[6])}
