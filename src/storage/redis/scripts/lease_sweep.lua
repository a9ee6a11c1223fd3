-- Destroys sessions under closed leases, or, when none is named, under slots that are not known here because a key was lost.
-- KEYS: meta, log, closed leases, slots, sessions held by slot, the buckets.
-- ARGV: birth, a random mark, retained changes, how many sessions are enough, the cursor in the first bucket, and for each lease its id,
-- its slot and the letter of its sessions' events.
-- Gives how many buckets are done, the cursor in the next one, how many sessions were destroyed, and of these how many for each lease.
local enough, cursor = tonumber(ARGV[4]), ARGV[5]
local lease_of, letter_of, destroyed = {}, {}, {}
for i = 6, #ARGV, 3 do
    -- Not when somebody else has swept it.
    if call('HGET', KEYS[3], ARGV[i]) == ARGV[i + 1] then
        lease_of[ARGV[i + 1]], letter_of[ARGV[i + 1]] = ARGV[i], string.upper(ARGV[i + 2])
    end
end
local is_known = {['']= true}
local function tail_of(slot)
    if #ARGV > 5 then
        return lease_of[slot]
    end
    if is_known[slot] == nil then
        is_known[slot] = call('HEXISTS', KEYS[4], slot) == 1
    end
    return not is_known[slot] and ''
end

-- Everything is read before anything is written.
local changes, gone, looked_at, done = {}, {}, 0, 0
for i = 6, #KEYS do
    local found = call('HSCAN', KEYS[i], cursor, 'COUNT', enough)
    local held = found[2]
    for n = 1, #held, 2 do
        local slot = held[n + 1]
        local lease = tail_of(slot)
        if lease then
            changes[#changes + 1] = (letter_of[slot] or 'x') .. held[n] .. lease
            gone[#gone + 1] = {KEYS[i], held[n], slot}
            destroyed[slot] = (destroyed[slot] or 0) + 1
            if lease ~= '' then
                hold(slot, -1)
            end
        end
    end
    looked_at, cursor = looked_at + #held / 2, found[1]
    if cursor ~= '0' then
        break
    end
    done = done + 1
    if #changes >= enough or looked_at >= 8 * enough then
        break
    end
end
call('HDEL', meta, '')
call('HSET', meta, 'time', text(now), 'wall', text(wall))
local problem = append(changes, -#changes, ARGV[2], tonumber(ARGV[3]), KEYS[5])
if problem then
    return problem
end
for _, one in ipairs(gone) do
    call('HDEL', one[1], one[2])
end
local counts = {}
for i = 6, #ARGV, 3 do
    counts[#counts + 1] = destroyed[ARGV[i + 1]] or 0
end
return {done, cursor, #gone, counts}
