-- Gives the registry a new id, because its log has lost changes. Does nothing if the old id is no longer current.
-- KEYS: meta of the first partition. ARGV: birth, old id, new id, the field of a partition that was lost or ''.
if call('HGET', meta, 'id') == ARGV[2] then
    call('HSET', meta, 'id', ARGV[3])
    if ARGV[4] ~= '' then
        call('HDEL', meta, ARGV[4])
    end
end
return 1
