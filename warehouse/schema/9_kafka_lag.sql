-- How far the consumers are behind the topic: one row per partition; without rows, Kafka is no source here.
-- A consumer that has no partition (Kafka is away, or others of its group have them all) is a row with an empty topic.
create or replace view {database}.kafka_lag
(
    topic String comment 'Topic that is consumed; empty for a consumer without a partition',
    partition Int32 comment 'Partition of the topic',
    next_offset Nullable(Int64) comment 'Offset of the message that is read next; null before the first',
    lag Nullable(Int64) comment 'Messages that wait in Kafka, as of a few seconds ago; null where that is not known yet',
    last_poll_at DateTime('UTC') comment 'When Kafka was last asked for messages, in UTC',
    last_commit_at DateTime('UTC') comment 'When offsets were last committed, their rows being in, in UTC',
    last_error String comment 'What went wrong last, empty when nothing has since the server started',
    last_error_at Nullable(DateTime('UTC')) comment 'When it went wrong, in UTC'
)
sql security definer
as
with
    consumed as
    (
        select
            assigned_topic as topic,
            assigned_partition as partition,
            assigned_offset as offset,
            JSONExtract(
                rdkafka_stat, 'topics', assigned_topic, 'partitions', toString(assigned_partition), 'consumer_lag',
                'Nullable(Int64)'
            ) as reported_lag,
            last_poll_time,
            last_commit_time,
            exceptions.time as error_times,
            exceptions.text as error_texts
        from system.kafka_consumers
        left array join
            assignments.topic as assigned_topic,
            assignments.partition_id as assigned_partition,
            assignments.current_offset as assigned_offset
        where database = '{database}' and table = 'kafka_messages'
    )

select
    topic,
    partition,
    if(topic = '' or offset < 0, null, offset) as next_offset,
    if(reported_lag < 0, null, reported_lag) as lag,
    last_poll_time as last_poll_at,
    last_commit_time as last_commit_at,
    extract(error_texts[-1], '^(.*?)(?:, Stack trace|$)') as last_error,
    if(empty(error_times), null, error_times[-1]) as last_error_at
from consumed
order by topic, partition
comment 'How far the consumers of Kafka are behind their topic';
