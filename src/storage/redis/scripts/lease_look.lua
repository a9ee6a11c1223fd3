-- Advances the clocks of leases, marks leases that are due as ending, and hands out leases whose end or sweep was
-- abandoned, so that their claims have expired.
-- KEYS: meta, leases, deadlines, ended leases, claims.
-- ARGV: birth, the maximum number of leases to mark, the maximum number of others to hand out, the duration in ms of
-- the caller's claim on them, how many ms without a look are an outage, the ms that leases get after an outage of
-- unknown length, the ms that leases get in addition to the length of an outage, a random number, the number of the
-- caller's own last look ('' for none), the ms since that look was answered and since it was sent (by the caller's
-- clock), the script's deadline, the maximum ms from when that look was sent to this deadline.
-- Returns the number of this look, the length of an outage in ms (-1: there was none, -2: unknown), the ms until the
-- next deadline (-1: there is none), the number of leases that were due, and for each lease its id and its record.
local problem = late(ARGV[12])
if problem then
    return problem
end
local most, claim = tonumber(ARGV[2]), tonumber(ARGV[4])
local state = call('HMGET', meta, 'looks', 'revived', 'grace', 'look_wall')
local looks, revived, grace = tonumber(state[1]), tonumber(state[2]), tonumber(state[3])
-- `passed` is the least time that has passed since the last look, and `length` the most (-2 if unknown). Redis' clock
-- may have been set, so if the last look was the caller's own, the caller's clock counts. If it was another replica's,
-- Redis' clock counts as far as it agrees with the caller's.
local by_wall, passed, length = wall - state[4], 0, -2
if ARGV[9] == state[1] then
    passed, length = tonumber(ARGV[10]), tonumber(ARGV[11])
else
    local at_most = tonumber(ARGV[11])
    if by_wall >= 0 and (ARGV[9] == '' or by_wall <= at_most) then
        passed, length = by_wall, by_wall
    elseif ARGV[9] ~= '' then
        length = at_most
    end
end
local lease_now = lease_time + math.min(LONGEST_LOOK, passed)
if by_wall < 0 or ARGV[9] ~= '' and now - clocks[3] > tonumber(ARGV[13]) then
    linger_now = clocks[2] + passed
end
local outage = length == -2 or length > tonumber(ARGV[5])
-- Fails before the first write if a key has the wrong type.
call('HLEN', KEYS[2])
call('ZCARD', KEYS[3])
call('HLEN', KEYS[4])
call('ZCARD', KEYS[5])
call('HDEL', meta, '')
looks = looks + 1
if outage then
    -- No lease could be kept alive during the outage. Leases that were last kept alive before it live for at least
    -- their ttl, and at least for `grace`, from now on.
    revived, grace = lease_now, tonumber(ARGV[6])
    if length >= 0 then
        grace = math.min(grace, length + ARGV[7])
    end
end
call('HSET', meta, 'time', text(now), 'wall', text(wall), 'look_wall', text(wall), 'lease_time', text(lease_now),
    'linger_time', text(linger_now), 'look_time', text(now), 'looks', text(looks), 'revived', text(revived),
    'grace', text(grace))

local given, marked = {}, 0
for _, lease in ipairs(call('ZRANGEBYSCORE', KEYS[5], '-inf', text(now), 'LIMIT', 0, ARGV[3])) do
    call('ZADD', KEYS[5], text(now + claim), lease)
    given[#given + 1] = lease
    given[#given + 1] = call('HGET', KEYS[4], lease) or 'mx 0 0 0 0 '
end
local function mark_due(lease, reason)
    local known = end_lease(lease, reason, claim, ARGV[8], '0', '0')
    if known then
        given[#given + 1] = lease
        given[#given + 1] = known
    end
end
for _, lease in ipairs(call('ZRANGEBYSCORE', KEYS[3], '-inf', text(linger_now - LINGERS), 'LIMIT', 0, most)) do
    mark_due(lease, 'v')
    marked = marked + 1
end
local due = call('ZRANGEBYSCORE', KEYS[3], 0, text(lease_now), 'WITHSCORES', 'LIMIT', 0, most - marked)
for i = 1, #due, 2 do
    local lease, deadline = due[i], tonumber(due[i + 1])
    local ttl = tonumber(string.match(call('HGET', KEYS[2], lease) or '', '^%d+')) or 0
    deadline = extended(deadline, ttl, revived, grace)
    if deadline > lease_now then
        call('ZADD', KEYS[3], text(deadline), lease)
    else
        mark_due(lease, 'x')
    end
    marked = marked + 1
end
local next = call('ZRANGEBYSCORE', KEYS[3], 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
local wait = next and math.max(0, next - lease_now) or math.huge
next = tonumber(call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2])
if next and next < 0 then
    wait = math.min(wait, math.max(0, next + LINGERS - linger_now))
end
wait = wait < math.huge and wait or -1
return {looks, outage and length or -1, wait, marked, unpack(given)}
