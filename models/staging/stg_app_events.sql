-- For analysts: the rollups read the same macro, hour by hour.
select
    event_id,
    session_id,
    user_id,
    event_type,
    app_version,
    device_type,
    os_version,
    country,
    properties,
    event_time
from {{ distinct_events('true') }}
