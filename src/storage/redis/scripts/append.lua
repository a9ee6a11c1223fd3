-- Appends changes to the log as one entry. KEYS[2] is the log.
-- The entry's id is the position of its last change and the number of its changes. Its one field is the mark of the
-- entry before it, its own mark, and the changes.

-- How many more sessions each lease has now, by its slot.
local held_more = {}
local function hold(slot, more)
    held_more[slot] = (held_more[slot] or 0) + more
end

-- `more` is how many more sessions the partition has. Returns nil, or an error after which nothing was appended or
-- counted.
local function append(parts, changes, more, own_mark, retain, held_key)
    local counted = {}
    local function undo(problem)
        for slot, by in pairs(counted) do
            call('HINCRBY', held_key, slot, -by)
        end
        return problem
    end
    for slot, by in pairs(held_more) do
        local done = pcall('HINCRBY', held_key, slot, by)
        if type(done) == 'table' then
            return undo(done)
        end
        counted[slot] = by
    end
    if changes == 0 then
        return nil
    end
    local final = last + changes
    local added = pcall('XADD', KEYS[2], text(final) .. '-' .. changes, 'e', mark .. own_mark .. table.concat(parts))
    if type(added) == 'table' and added.err then
        return undo(added)
    end
    call('HSET', meta, 'end', text(final), 'mark', own_mark, 'count', text(count + more))
    -- Trimming once for so many changes is enough.
    local step = math.max(1, math.min(1000, math.floor(retain / 8)))
    if final > retain and math.floor(last / step) ~= math.floor(final / step) then
        pcall('XTRIM', KEYS[2], 'MINID', text(final - retain + 1))
    end
    return nil
end
