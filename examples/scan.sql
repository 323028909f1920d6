-- What a scan says of each folder; duckdb < examples/scan.sql, beside a scan in photos-scan
SELECT parse_dirpath(coalesce(container, source)) AS folder,
       count(*) AS images,
       count(*) FILTER (verdict = 'ai_generated') AS likely_ai,
       round(avg(probability), 3) AS mean_probability,
       count(error_code) AS not_scored
FROM 'photos-scan/parts/*.parquet'
GROUP BY folder
ORDER BY likely_ai DESC;
