-- Destroys sessions under closed leases or, if no lease is given, under slots that are unknown because a key was lost.
-- KEYS: meta, log, closed leases, slots, sessions held by slot, the buckets.
-- ARGV: birth, a random mark, how many changes to retain, how many sessions are enough, the cursor in the first bucket,
-- '1' if the counts of sessions are unreliable, and for each lease its id, its slot and the letter of the destroy
-- events of its sessions.
-- Returns the number of buckets that are done, the cursor in the next one, the number of sessions destroyed, and their
-- number for each lease.
local enough, cursor = tonumber(ARGV[4]), ARGV[5]
local lease_of, letter_of, destroyed = {}, {}, {}
local leases = {}
for i = 7, #ARGV, 3 do
    leases[#leases + 1] = ARGV[i]
end
for i, slot in ipairs(#leases > 0 and call('HMGET', KEYS[3], unpack(leases)) or {}) do
    -- Another replica may have swept the lease meanwhile.
    if slot == ARGV[3 * i + 5] then
        lease_of[slot], letter_of[slot] = leases[i], string.upper(ARGV[3 * i + 6])
    end
end
local is_known, looked_at = {[''] = true}, 0
-- Returns the lease for the log entry, or '' if the slot is unknown, if sessions under this slot must be destroyed.
-- Returns nil or false if they stay.
local function tail_of(slot)
    if #ARGV > 6 then
        return lease_of[slot]
    end
    if is_known[slot] == nil then
        is_known[slot] = call('HEXISTS', KEYS[4], slot) == 1
    end
    return not is_known[slot] and ''
end

-- The number of sessions still to be found, or infinite if it is unknown. At 0, no further bucket needs to be read.
local left = 0
if #ARGV == 6 or ARGV[6] == '1' or call('HGET', meta, 'uncounted') then
    left = math.huge
end
for slot in pairs(lease_of) do
    local held = tonumber(call('HGET', KEYS[5], slot))
    -- The count is negative only if somebody else has written to the counts.
    left = left + (held and held >= 0 and held or math.huge)
end

-- Reads those fields of a bucket that may be sessions to destroy. Returns the cursor after them, and the fields with
-- their values.
local function look(bucket)
    local size = cursor == '0' and call('HLEN', bucket) or math.huge
    if size > enough then
        return unpack(call('HSCAN', bucket, cursor, 'COUNT', enough))
    elseif size > 0 and size <= 4 then
        return '0', call('HGETALL', bucket)
    elseif size > 0 then
        for _, slot in ipairs(call('HVALS', bucket)) do
            if tail_of(slot) then
                return '0', call('HGETALL', bucket)
            end
        end
    end
    looked_at = looked_at + size / 2 + 1
    return '0', {}
end

-- All reads come before the first write.
local changes, gone, done = {}, {}, 0
for i = 6, #KEYS do
    if left <= 0 then
        done = #KEYS - 5
        break
    end
    local next, held = look(KEYS[i])
    for n = 1, #held, 2 do
        local slot = held[n + 1]
        local lease = tail_of(slot)
        if lease then
            changes[#changes + 1] = (letter_of[slot] or 'x') .. held[n] .. lease
            gone[#gone + 1] = {KEYS[i], held[n], slot}
            destroyed[slot] = (destroyed[slot] or 0) + 1
            left = left - 1
            if lease ~= '' then
                hold(slot, -1)
            end
        end
    end
    looked_at, cursor = looked_at + #held / 2, next
    if cursor ~= '0' then
        break
    end
    done = done + 1
    if #changes >= enough or looked_at >= 8 * enough then
        break
    end
end
call('HDEL', meta, '')
store_clock()
local problem = append(changes, #changes, -#changes, ARGV[2], tonumber(ARGV[3]), KEYS[5])
if problem then
    return problem
end
for _, one in ipairs(gone) do
    call('HDEL', one[1], one[2])
end
local counts = {}
for i = 7, #ARGV, 3 do
    counts[#counts + 1] = destroyed[ARGV[i + 1]] or 0
end
return {done, cursor, #gone, counts}
