-- Synthetic events with the tutorial's ten columns: exactly {events:UInt64} rows in the {days:UInt16} days before
-- {until:DateTime('UTC')}, the same rows for the same parameters. One pass over numbers(), whatever the number of rows.
--
-- Every 64 consecutive events are cut into sessions at random. A user has one country, device and operating system, and
-- few users have many of the sessions. Sessions follow the user's local day and week. Users take up a new version late.
with
    sipHash64({seed:UInt64}, {until:DateTime('UTC')}) as salt,
    toUnixTimestamp({until:DateTime('UTC')}) - 86400 * {days:UInt16} as first_second,

    -- code, weight in percent, hours ahead of UTC, percent of phones that run iOS
    [
        ('US', 21, -6, 58), ('IN', 12, 5, 5), ('BR', 8, -3, 19), ('GB', 6, 0, 51), ('DE', 5, 1, 38), ('FR', 5, 1, 36),
        ('JP', 5, 9, 66), ('MX', 4, -6, 24), ('CA', 4, -5, 60), ('ID', 4, 7, 12), ('ES', 3, 1, 26), ('IT', 3, 1, 30),
        ('AU', 3, 10, 60), ('KR', 2, 9, 27), ('TR', 2, 3, 19), ('NL', 2, 1, 42), ('PL', 1, 1, 31), ('SE', 1, 1, 57),
        ('CH', 1, 1, 53), ('AR', 1, -3, 14), ('CO', 1, -5, 18), ('ZA', 1, 2, 16), ('NG', 1, 1, 9), ('EG', 1, 2, 15),
        ('PH', 1, 8, 17), ('PT', 1, 0, 30), ('AE', 1, 4, 35)
    ] as countries,
    [
        ('screen_view', 36), ('tap', 24), ('product_view', 10), ('search', 9), ('add_to_cart', 5),
        ('notification_open', 4), ('share', 3), ('login', 3), ('error', 3), ('purchase', 2), ('sign_up', 1)
    ] as event_types,
    -- A place for every percent: a random number below 100 picks by weight.
    arrayFlatten(arrayMap(country -> arrayWithConstant(country.2, country.1), countries)) as country_codes,
    arrayFlatten(arrayMap(country -> arrayWithConstant(country.2, country.3), countries)) as country_hours,
    arrayFlatten(arrayMap(country -> arrayWithConstant(country.2, country.4), countries)) as country_ios_percents,
    arrayFlatten(arrayMap(type -> arrayWithConstant(type.2, type.1), event_types)) as event_type_names,
    ['home', 'product', 'cart', 'profile', 'search', 'settings', 'checkout', 'help'] as screens,

    -- How busy each local hour and each day from Monday are, in percent of the busiest.
    [18, 10, 6, 5, 6, 12, 25, 42, 52, 50, 48, 52, 62, 58, 52, 52, 56, 66, 78, 92, 100, 96, 70, 38] as hour_percents,
    [76, 74, 76, 80, 90, 100, 96] as day_percents,

    blocks as
    (
        select
            number as block,
            -- Each bit is set in one of eight: sessions of about eight events, at most 64.
            bitPositionsToArray(
                bitOr(
                    1,
                    bitAnd(
                        bitAnd(sipHash64(salt, number, 1), sipHash64(salt, number, 2)),
                        sipHash64(salt, number, 3)
                    )
                )
            ) as starts,
            arrayPushBack(arrayPopFront(starts), 64) as ends
        from numbers(intDiv({events:UInt64} + 63, 64))
    ),

    sessions as
    (
        select
            64 * block + start as first_event,
            end - start as event_count,
            sipHash64(salt, first_event) as session_hash,
            -- The most active 1 % of the users have 18 % of the sessions, the most active user 30 times the average.
            toUInt64(
                (exp(5 * (session_hash / 18446744073709551616.)) - 1) / (exp(5) - 1)
                * (1 + intDiv({events:UInt64}, 40))
            ) as user_number,
            sipHash64({seed:UInt64}, user_number) as user_hash,
            1 + user_hash % 100 as country_place,
            3600 * country_hours[country_place] as local_seconds,
            intDiv(user_hash, 100) % 100 as device_roll,
            intDiv(user_hash, 10000) % 100 < country_ios_percents[country_place] as is_apple,
            intDiv(user_hash, 1000000) % 100 as os_roll,
            3 + session_hash % 38 as pace,
            -- Of six random times the first that the rhythm of the user's day and week accepts.
            arrayMap(
                attempt -> first_second
                + sipHash64(session_hash, attempt) % (86400 * {days:UInt16} - event_count * pace),
                range(6)
            ) as attempts,
            attempts[
                greatest(
                    1,
                    arrayFirstIndex(
                        second -> sipHash64(session_hash, second) % 10000
                        < hour_percents[1 + intDiv(second + local_seconds, 3600) % 24]
                        * day_percents[1 + intDiv(second + local_seconds + 259200, 86400) % 7],
                        attempts
                    )
                )
            ] as first_event_second,
            -- A release every 9 days; users take it up to 49 days later, most of them within days.
            intDiv(
                first_event_second - first_second
                + 86400 * (60 - intDiv(user_hash, 100000000) % 8 * (intDiv(user_hash, 800000000) % 8)),
                86400 * 9
            ) as release,
            concat('user_', toString(user_number)) as user_id,
            concat(toString(4 + intDiv(release, 24)), '.', toString(intDiv(release % 24, 3)), '.', toString(release % 3))
                as app_version,
            multiIf(device_roll < 80, 'smartphone', device_roll < 88, 'tablet', 'desktop') as device_type,
            multiIf(
                device_type = 'desktop',
                multiIf(os_roll < 55, 'Windows 11', os_roll < 75, 'Windows 10', os_roll < 90, 'macOS 15.4', 'macOS 14.7'),
                is_apple,
                concat(
                    if(device_type = 'tablet', 'iPadOS ', 'iOS '),
                    multiIf(os_roll < 45, '18.4', os_roll < 70, '18.1', os_roll < 90, '17.6', '16.7')
                ),
                multiIf(os_roll < 30, 'Android 15', os_roll < 60, 'Android 14', os_roll < 82, 'Android 13', 'Android 12')
            ) as os_version,
            country_codes[country_place] as country,
            concat('sess_', lower(hex(session_hash))) as session_id
        from blocks
        array join
            starts as start,
            ends as end
    ),

    first_event + position as event_number,
    sipHash64(session_hash, position) as event_hash,
    screens[1 + event_hash % 8] as screen

select
    -- An odd factor and a fixed mask keep different numbers different.
    concat('evt_', lower(hex(bitXor(event_number * 11400714819323198485, salt)))) as event_id,
    user_id,
    if(position = 0, 'app_open', event_type_names[1 + intDiv(event_hash, 8) % 100]) as event_type,
    toDateTime(first_event_second + position * pace + intDiv(event_hash, 800) % pace, 'UTC') as event_time,
    app_version,
    device_type,
    os_version,
    country,
    if(
        bitAnd(bitShiftRight(event_hash, 60), 1) = 0,
        concat('{"key":"screen","value":"', screen, '"}'),
        concat('{"screen":"', screen, '","value":', toString(intDiv(event_hash, 1000000) % 1000), '}')
    ) as properties,
    session_id
from sessions
array join range(event_count) as position
where event_number < {events:UInt64}
