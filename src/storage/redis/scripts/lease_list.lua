-- Lists leases that have not ended, in the order of their ids.
-- KEYS: meta, leases, deadlines, ended leases, ids. ARGV: birth, the id after which to begin, how many leases to
-- examine, an owner with a space before it or '' for all owners, the leases to examine (if not all).
-- Returns the last lease that was examined ('' if there was none), the number of leases examined, and for each lease
-- that matches its id, the ms until it ends, and its record.
local state = call('HMGET', meta, 'revived', 'grace')
local revived, grace = tonumber(state[1]), tonumber(state[2])
-- The time that the clock of deadlines would show after a look.
local shown = lease_time + math.min(LONGEST_LOOK, now - clocks[3])
local leases = #ARGV > 4 and {unpack(ARGV, 5)}
    or call('ZRANGEBYSCORE', KEYS[5], '(' .. ARGV[2], '+inf', 'LIMIT', 0, ARGV[3])
local listed, n, owner = {leases[#leases] or '', #leases}, 2, ARGV[4]
for i, record in ipairs(#leases > 0 and call('HMGET', KEYS[2], unpack(leases)) or {}) do
    local lease, left = leases[i], 0
    if not record and call('ZSCORE', KEYS[5], lease) then
        -- The lease is ending, and that was not reported yet: its id would be gone otherwise.
        record = string.match(call('HGET', KEYS[4], lease) or '', '^m. %d+ %d+ %d+ (.*)$')
    end
    local plain = record and (string.match(record, '^~%d+ (.*)$') or record)
    if record and (owner == '' or string.match(plain, ' .*$') == owner) then
        local ttl, deadline = tonumber(string.match(record, '^%d+')), call('ZSCORE', KEYS[3], lease)
        if not ttl then
            left = string.match(record, '%d+') - linger_now
        elseif deadline then
            left = math.min(extended(tonumber(deadline), ttl, revived, grace) - 1 - shown, math.max(ttl, grace))
        end
        listed[n + 1], listed[n + 2], listed[n + 3] = lease, math.max(0, left), record
        n = n + 3
    end
end
return listed
