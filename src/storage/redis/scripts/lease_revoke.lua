-- Marks a lease as ending.
-- ARGV: birth, until when the script is good, lease, for how many ms the caller claims it, a random number, until when
-- the end may be recorded.
-- Returns 1 and the lease's record, 0 and its record if somebody else is ending it, -1 and '' if it is gone.
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
