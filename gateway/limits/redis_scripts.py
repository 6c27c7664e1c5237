"""Lua scripts for Redis: each is one round trip and atomic.

A rate counter is a hash of the last sixty seconds; a concurrency counter is a sorted set of leases
by expiry. The counting is that of `windows.py` and `process_counters.py`; a property test compares
their answers.
"""

from gateway.limits.windows import LEASE_WAIT_MS, WINDOW_SECONDS

SERVER_CLOCK = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""
"""Sets `now` in ms; each script starts with it. The server's, since gateways' clocks may differ."""

_CONSTANTS = f"local WINDOW, LEASE_WAIT = {WINDOW_SECONDS}, {LEASE_WAIT_MS}"

EXCHANGE = (
    _CONSTANTS
    + """
local second = math.floor(now / 1000)
local out = {second, redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0}
local key, argument = 1, 1
local function next_key() key = key + 1; return KEYS[key] end
local function next_argument() argument = argument + 1; return ARGV[argument] end
local function next_number() return tonumber(next_argument()) end

local function read_lease(one)
    redis.call('ZREMRANGEBYSCORE', one.name, '-inf', now)
    one.used = redis.call('ZCARD', one.name)
end

local function read_window(one)
    local stored = redis.call('HGETALL', one.name)
    one.used, one.counts = 0, {}
    for at = 1, #stored, 2 do
        local counted_in, count = tonumber(stored[at]), tonumber(stored[at + 1])
        if counted_in > second - WINDOW then
            one.counts[counted_in] = count
            one.used = one.used + count
        else
            redis.call('HDEL', one.name, stored[at])
        end
    end
end

local function count(one, lease, ttl)
    one.used = one.used + one.cost
    if one.kind == 'lease' then
        redis.call('ZADD', one.name, now + ttl, lease)
        redis.call('PEXPIRE', one.name, ttl)
    else
        one.counts[second] = redis.call('HINCRBY', one.name, second, one.cost)
        redis.call('EXPIRE', one.name, WINDOW)
    end
end

local function wait(one, cost)
    if cost > one.value then return -1 end
    local over = one.used + cost - one.value
    if over <= 0 then return 0 end
    if one.kind == 'lease' then return LEASE_WAIT end
    for counted_in = second - WINDOW + 1, second do
        over = over - (one.counts[counted_in] or 0)
        if over <= 0 then return (counted_in + WINDOW) * 1000 - now end
    end
    return WINDOW * 1000
end

local function reset(one)
    for counted_in = second, second - WINDOW + 1, -1 do
        if one.kind == 'window' and one.counts[counted_in] then
            return (counted_in + WINDOW) * 1000 - now
        end
    end
    return 0
end

local function take()
    local lease, ttl = next_argument(), next_number()
    local fits, all = 1, {}
    for number = 1, next_number() do
        local one = {
            name = next_key(), kind = next_argument(), value = next_number(), cost = next_number()
        }
        if one.kind == 'lease' then read_lease(one) else read_window(one) end
        if one.used + one.cost > one.value then fits = 0 end
        all[number] = one
    end
    out[#out + 1] = fits
    for _, one in ipairs(all) do
        if fits == 1 then count(one, lease, ttl) end
        local waits = 0
        if fits == 0 then
            waits = wait(one, one.cost)
        elseif one.kind == 'window' then
            waits = wait(one, 1)
        end
        out[#out + 1] = one.used
        out[#out + 1] = waits
        out[#out + 1] = reset(one)
    end
end

local function release()
    local lease = next_argument()
    for _ = 1, next_number() do redis.call('ZREM', next_key(), lease) end
end

local function give_back()
    local counted_in = next_argument()
    for _ = 1, next_number() do
        local name, cost = next_key(), next_number()
        local left = tonumber(redis.call('HGET', name, counted_in) or 0) - cost
        if left > 0 then
            redis.call('HSET', name, counted_in, left)
        else
            redis.call('HDEL', name, counted_in)
        end
    end
end

while argument < #ARGV do
    local what = next_argument()
    if what == 'take' then take() elseif what == 'release' then release() else give_back() end
end
return table.concat(out, ' ')
"""
)
"""Executes a batch of commands.

KEYS: the processes, then the counters in the order of the commands. ARGV: this process, then
`take` lease ttl_ms n (kind value cost)…, `release` lease n, `give_back` second n (cost)…
Answer: the second, 1 or 0 for a registered process, and for each `take` 1 or 0, and for each of its
counters the usage, the wait (-1: for ever) and the time until the usage is zero, in ms."""

KEEP = """
local ttl = tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ttl, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ttl)
local argument = 3
for number = 2, #KEYS do
    for _ = 1, tonumber(ARGV[argument]) do
        argument = argument + 1
        redis.call('ZADD', KEYS[number], now + ttl, ARGV[argument])
    end
    argument = argument + 1
    redis.call('PEXPIRE', KEYS[number], ttl)
end
return redis.call('ZCARD', KEYS[1])
"""
"""Heartbeat: registers this process and renews its leases, restoring any that Redis has lost.
KEYS: the processes, then counters. ARGV: this process, ttl_ms, then for each counter the number of
its leases and the leases. Answer: the number of processes."""
