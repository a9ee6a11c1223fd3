-- Lists leases that have not ended, in the order of their ids.
-- KEYS: meta, leases, deadlines, ended leases, ids. ARGV: birth, the id after which to begin, how many to look at, '='
-- and an owner or '' for all, leases to look at instead of all.
-- Returns the last lease that was looked at ('' if there was none), how many there were, and for each that is listed
-- its id, 1 if it lingers, the ms until it ends, its ttl and its owner.
local state = call('HMGET', meta, 'revived', 'grace')
local revived, grace = tonumber(state[1]), tonumber(state[2])
-- What the clock of deadlines shows once somebody looks.
local shown = lease_time + math.min(LONGEST_LOOK, now - clocks[3])

-- Returns the record of a lease, whether it lingers, and the ms until it ends. Returns nil if it has ended.
local function look_up(lease, known)
    if not known and call('ZSCORE', KEYS[5], lease) then
        -- It is ending, and nobody was told yet: otherwise it would no longer be among the ids.
        known = string.match(call('HGET', KEYS[4], lease) or '', '^m. %d+ %d+ %d+ (.*)$')
    end
    local over, record = string.match(known or '', '^~(%d+) (.*)$')
    if over then
        return record, true, over - linger_now
    end
    local deadline, ttl = call('ZSCORE', KEYS[3], lease), tonumber(string.match(known or '', '^%d+'))
    local left = deadline and extended(tonumber(deadline), ttl, revived, grace) - 1 - shown or 0
    return known, false, math.min(left, math.max(ttl or 0, grace))
end

local leases = #ARGV > 4 and {unpack(ARGV, 5)}
    or call('ZRANGEBYSCORE', KEYS[5], '(' .. ARGV[2], '+inf', 'LIMIT', 0, ARGV[3])
local listed = {leases[#leases] or '', #leases}
for i, known in ipairs(#leases > 0 and call('HMGET', KEYS[2], unpack(leases)) or {}) do
    local record, lingers, left = look_up(leases[i], known)
    local ttl, owner = string.match(record or '', '^(%d+) (.*)$')
    if ttl and (ARGV[4] == '' or ARGV[4] == '=' .. owner) then
        for _, part in ipairs({leases[i], lingers and 1 or 0, math.max(0, left), ttl, owner}) do
            listed[#listed + 1] = part
        end
    end
end
return listed
