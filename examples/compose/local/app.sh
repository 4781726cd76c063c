# Stands for an application: every minute a file, and then the row that names it.
export PGHOST=db PGUSER=shop PGDATABASE=shop PGPASSWORD
PGPASSWORD=$(cat /run/secrets/db-password)
until psql -qc 'CREATE TABLE IF NOT EXISTS upload (name text PRIMARY KEY, stored timestamptz NOT NULL DEFAULT now())'; do sleep 1; done
chown 10001:10001 /uploads
while true; do
    name=$(date -u +%Y%m%dT%H%M%SZ).txt
    echo "stored at $name" | install -o 10001 -g 10001 -m 0600 /dev/stdin "/uploads/$name"
    psql -qc "INSERT INTO upload (name) VALUES ('$name')"
    sleep 60
done
