-- Creates and destroys sessions, in order. Each step is for one session, and is one of:
--   'c' create without a lease
--   'C' create under a lease, or move to it
--   'T' create under a lease, but take an existing session only from a certain lease
--   'd' destroy
--   'D' destroy only if the session is under the lease
-- KEYS: meta, log, attached leases (lingering ones with '~' before their slot), slots, sessions held by slot, for each
-- lease its set of buckets, for each step its bucket.
-- ARGV: birth, the script's deadline, the position up to which the caller has read, how many changes to retain, the
-- session limit (-1: the partition's quota), a random mark, the leases (8 bytes each), '1' if all steps are 'c', the
-- steps (a letter and the session's 16 bytes each), the lease of each step (a byte: the lease's number in this call, or
-- 0), the bucket's index within the partition (4 bytes each), how many buckets share one bit of a lease's set, the
-- lease that each step may take the session from (a byte: the lease's number in this call, or 0), leases that protect
-- nothing because they have ended or linger (8 bytes each).
-- Returns the time, the end of the log, a letter for each step, and a lease (8 bytes) for each letter S, Z and E:
--   '0' nothing changed
--   'S' nothing changed, because the session is under the returned lease
--   'Z' like S, but the returned lease is closed here
--   '1' the session was created or destroyed
--   'm' the session moved
--   'E' the session is under the returned lease, which is closed or lingers here, or the step waits for an earlier
--       takeover of such a session; the caller must first find out whether that lease still protects its sessions
--   'L' no session can come under the step's lease here
--   'F' the partition is full
--   'M' Redis has no memory for the session
-- Errors, after which nothing has changed: LATE if the deadline has passed, BEHIND if this Redis lacks changes that the
-- caller has read.
local problem = late(ARGV[2])
if problem then
    return problem
end
if last < tonumber(ARGV[3]) then
    return redis.error_reply('BEHIND the log ends at ' .. text(last))
end
local most, leases, steps, places, offsets = tonumber(ARGV[5]), ARGV[7], ARGV[9], ARGV[10], ARGV[11]
local sub, byte, keys = string.sub, string.byte, KEYS
local lease_count, step_count = #leases / 8, #steps / 17
local function session_of(step)
    return sub(steps, step * 17 - 15, step * 17)
end
local slot_of, LINGERS = {}, byte('~')
for i = 1, lease_count do
    slot_of[i] = call('HGET', keys[3], sub(leases, i * 8 - 7, i * 8))
end
if most < 0 then
    most = tonumber(call('HGET', meta, 'quota')) or 0
end

-- Whether Redis refuses growth, because it has no memory left. Then only creates are refused.
local refused = type(pcall('HSET', meta, 'time', text(now), 'wall', text(wall))) == 'table'
-- Fails here if Redis refuses all changes, or if the user lacks the right to HDEL, which undo needs.
call('HDEL', meta, '')
if refused then
    store_clock()
end

local answers, more = {}, 0
-- The changes for the log, in parts, and the number of parts and of changes.
local parts, part_count, logged = {}, 0, 0
local function log(letter, session, lease)
    parts[part_count + 1], parts[part_count + 2], parts[part_count + 3] = letter, session, lease
    part_count, logged = part_count + 3, logged + 1
end
-- The steps that changed something, and the previous slot of each session (false if it did not exist).
local changed, found, n = {}, {}, 0
local function undo(problem)
    for i = n, 1, -1 do
        local step = changed[i]
        local bucket, session = keys[5 + lease_count + step], session_of(step)
        if found[i] then
            call('HSET', bucket, session, found[i])
        else
            call('HDEL', bucket, session)
        end
    end
    return problem
end

-- After one session found no room, the later ones of the batch are refused too, so that the batch keeps its order.
local full = false

-- A lease's set of buckets is a set of numbers as long as they are few. After that it is a string of bits, each of
-- which may stand for several buckets. Bits take less memory, but would make the sweep of a small lease search
-- thousands of buckets.
local FEW, MOST_BITS = 256, 2 ^ 14
-- How many buckets share a bit. For each lease, the size of its set of numbers, or false if it has bits.
local a_bit, size_of = tonumber(ARGV[12]), {}
local function as_bits(numbers)
    local bytes, last_byte = {}, 0
    for _, number in ipairs(numbers) do
        local place = math.floor(number / a_bit)
        -- Redis numbers bits from the most significant one.
        local at, value = math.floor(place / 8), 2 ^ (7 - place % 8)
        local others = bytes[at] or 0
        if math.floor(others / value) % 2 == 0 then
            bytes[at] = others + value
        end
        last_byte = math.max(last_byte, at)
    end
    local chars = {}
    for at = 0, last_byte do
        chars[at + 1] = string.char(bytes[at] or 0)
    end
    return table.concat(chars)
end
-- Adds the bucket of a step to the set of its lease. Returns an error if Redis has no memory.
local function add_bucket(place, step)
    local key = keys[5 + place]
    local a, b, c, d = byte(offsets, step * 4 - 3, step * 4)
    local number = ((a * 256 + b) * 256 + c) * 256 + d
    if size_of[place] == nil then
        size_of[place] = call('TYPE', key).ok ~= 'string' and call('SCARD', key)
        if size_of[place] == 0 and tonumber(call('HGET', keys[5], slot_of[place]) or 0) ~= 0 then
            -- The set was lost. From now on, it contains all buckets.
            local done = pcall('SET', key, string.rep('\255', MOST_BITS / 8))
            if done.err then
                size_of[place] = nil
                return done
            end
            size_of[place] = false
        end
    end
    if not size_of[place] then
        return pcall('SETBIT', key, math.floor(number / a_bit), 1)
    end
    local done = pcall('SADD', key, number)
    if done == 1 then
        size_of[place] = size_of[place] + 1
        if size_of[place] > FEW then
            done = pcall('SET', key, as_bits(call('SMEMBERS', key)))
            size_of[place], done = done.err and FEW, done.err and done or 1
        end
    end
    return done
end

-- Returns the lease of a slot, or zeros if the slot is unknown.
local lease_of, NO_LEASE = {}, string.rep('\0', 8)
local function lease_at(slot)
    lease_of[slot] = lease_of[slot] or call('HGET', keys[4], slot) or NO_LEASE
    return lease_of[slot]
end

-- Returns the answer for a session that stays under its slot.
local told = {}
local function stays(slot)
    local lease = slot ~= '' and lease_at(slot) or NO_LEASE
    if lease == NO_LEASE then
        return '0'
    end
    told[#told + 1] = lease
    return call('HEXISTS', keys[3], lease) == 1 and 'S' or 'Z'
end

-- Leases that protect nothing. And for each lease of a step, the closed lease that its takeovers wait for: later
-- takeovers of the batch under the same lease wait too, so that the batch keeps its order.
local powerless, waits_for = {}, {}
for i = 1, #ARGV[14], 8 do
    powerless[sub(ARGV[14], i, i + 7)] = true
end
-- Returns nil if a step may take a session from a slot, and otherwise the step's answer.
local function protects(step, slot)
    local place, from = byte(places, step), byte(ARGV[13], step)
    if not waits_for[place] then
        local lease = slot and slot ~= '' and lease_at(slot) or NO_LEASE
        if lease == NO_LEASE or powerless[lease] or from > 0 and lease == sub(leases, from * 8 - 7, from * 8) then
            return nil
        end
        local attached = call('HGET', keys[3], lease)
        if attached and byte(attached) ~= LINGERS then
            return stays(slot)
        end
        waits_for[place] = lease
    end
    told[#told + 1] = waits_for[place]
    return 'E'
end

-- Creates a session under the step's lease, or moves it there. Returns the answer, or an error.
local function create_leased(step, bucket, session, takes_from)
    local place = byte(places, step)
    local slot = slot_of[place]
    if not slot or byte(slot) == LINGERS then
        return 'L'
    end
    local held = pcall('HGET', bucket, session)
    if type(held) == 'table' then
        return held
    end
    local protected = takes_from and held ~= slot and protects(step, held)
    if protected then
        return protected
    elseif held == slot then
        return '0'
    elseif refused then
        return 'M'
    elseif not held and (full or count + more >= most) then
        full = true
        return 'F'
    end
    local done = add_bucket(place, step)
    if type(done) ~= 'table' then
        done = pcall('HSET', bucket, session, slot)
    end
    if type(done) == 'table' then
        return done
    end
    n = n + 1
    changed[n], found[n] = step, held
    hold(slot, 1)
    if held then
        local before = held == '' and NO_LEASE or lease_at(held)
        if held ~= '' then
            hold(held, -1)
        end
        log('M', session, sub(leases, place * 8 - 7, place * 8) .. before)
        return 'm'
    end
    more = more + 1
    log('C', session, sub(leases, place * 8 - 7, place * 8))
    return '1'
end

-- Destroys a session. With a slot, only if the session is under it. Returns the answer, or an error.
local function destroy(step, bucket, session, slot)
    local held = pcall('HGET', bucket, session)
    if type(held) == 'table' then
        return held
    elseif not held or slot and held ~= slot then
        return '0'
    end
    local done = pcall('HDEL', bucket, session)
    if type(done) == 'table' then
        return done
    end
    n = n + 1
    changed[n], found[n] = step, held
    more = more - 1
    if held == '' then
        log('r', session, '')
    else
        hold(held, -1)
        log(slot and 'L' or 'R', session, lease_at(held))
    end
    return '1'
end

local base, from = 5 + lease_count, 2
if ARGV[8] == '1' and not refused and count + step_count <= most then
    -- The fast path for the most common batch: all steps create without a lease, and there is room for all of them.
    local existed = {}
    local function undo_created(problem, before)
        for step = 1, before - 1 do
            if not existed[step] then
                call('HDEL', keys[base + step], session_of(step))
            end
        end
        return problem
    end
    for step = 1, step_count do
        local answer = pcall('HSETNX', keys[base + step], sub(steps, from, from + 15), '')
        from = from + 17
        if answer == 1 then
            n = n + 1
        elseif answer == 0 then
            existed[step] = true
        else
            return undo_created(answer, step)
        end
    end
    -- In the log, a create without a lease has the same bytes as in the arguments.
    local created = steps
    for step = 1, n < step_count and step_count or 0 do
        if existed[step] then
            answers[step] = stays(call('HGET', keys[base + step], session_of(step)))
        else
            answers[step], part_count = '1', part_count + 1
            parts[part_count] = sub(steps, step * 17 - 16, step * 17)
        end
    end
    if n < step_count then
        created = table.concat(parts)
    end
    problem = n > 0 and append({created}, n, n, ARGV[6], tonumber(ARGV[4]), keys[5])
    if problem then
        return undo_created(problem, step_count + 1)
    end
    return {now, last + n, n == step_count and string.rep('1', n) or table.concat(answers), table.concat(told)}
end
for step = 1, step_count do
    local letter, session, bucket = byte(steps, step * 17 - 16), session_of(step), keys[base + step]
    local answer
    if letter == 99 then
        if refused or full or count + more >= most then
            answer = pcall('HEXISTS', bucket, session)
            if answer == 1 then
                answer = stays(call('HGET', bucket, session))
            elseif answer == 0 then
                answer, full = refused and 'M' or 'F', full or not refused
            end
        else
            answer = pcall('HSETNX', bucket, session, '')
            if answer == 1 then
                n = n + 1
                changed[n], found[n] = step, false
                more = more + 1
                log('c', session, '')
                answer = '1'
            elseif answer == 0 then
                answer = stays(call('HGET', bucket, session))
            end
        end
    elseif letter == 67 or letter == 84 then
        answer = create_leased(step, bucket, session, letter == 84)
    elseif letter == 100 then
        answer = destroy(step, bucket, session)
    else
        local slot = slot_of[byte(places, step)]
        answer = slot and destroy(step, bucket, session, string.match(slot, '%d+')) or 'L'
    end
    if type(answer) == 'table' then
        return undo(answer)
    end
    answers[step] = answer
end
problem = append(parts, logged, more, ARGV[6], tonumber(ARGV[4]), keys[5])
if problem then
    return undo(problem)
end
return {now, last + logged, table.concat(answers), table.concat(told)}
