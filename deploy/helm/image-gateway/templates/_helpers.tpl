{{- define "gateway.name" -}}
{{- if contains "image-gateway" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-image-gateway" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "gateway.selector" -}}
app.kubernetes.io/name: image-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "gateway.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What every container of the gateway may do: nothing beyond its own process. */}}
{{- define "gateway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "gateway.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The environment: secrets by reference, settings by their names. */}}
{{- define "gateway.environment" -}}
- name: GATEWAY_PUBLIC_URL
  value: {{ .Values.publicUrl | quote }}
- name: GATEWAY_DATA_DIR
  value: /scratch/data
- name: TMPDIR
  value: /scratch/tmp
- name: GATEWAY_SHUTDOWN_DELAY_SECONDS
  value: {{ .Values.shutdown.delaySeconds | quote }}
- name: GATEWAY_DRAIN_SECONDS
  value: {{ .Values.shutdown.drainSeconds | quote }}
{{- if eq .Values.storage.kind "s3" }}
- name: GATEWAY_STORAGE_URL
  value: {{ .Values.storage.s3.url | quote }}
{{- with .Values.storage.s3.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.storage.s3.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- with .Values.storage.s3.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: access-key-id}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: secret-access-key}}
{{- end }}
{{- else }}
- name: GATEWAY_STORAGE_URL
  value: file:///images/store
{{- end }}
{{- if .Values.modelsFile }}
- name: GATEWAY_MODELS_FILE
  value: /models/models.toml
{{- end }}
{{- $secret := .Values.existingSecret }}
- name: GATEWAY_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ $secret | quote }}, key: database-url}}
- name: GATEWAY_MASTER_KEY
  valueFrom: {secretKeyRef: {name: {{ $secret | quote }}, key: master-key}}
{{- range $name, $key := dict "GATEWAY_MIGRATION_DATABASE_URL" "migration-database-url" "GATEWAY_REDIS_URL" "redis-url" "GATEWAY_ADMIN_KEY" "admin-key" "OPENAI_API_KEY" "openai-api-key" "GEMINI_API_KEY" "gemini-api-key" "GATEWAY_OIDC_CLIENT_SECRET" "oidc-client-secret" }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $secret | quote }}, key: {{ $key }}, optional: true}}
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "gateway.mounts" -}}
- {name: scratch, mountPath: /scratch}
{{- if eq .Values.storage.kind "pvc" }}
- {name: images, mountPath: /images}
{{- end }}
{{- if .Values.modelsFile }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- define "gateway.volumes" -}}
- name: scratch
  emptyDir:
    sizeLimit: {{ .Values.scratchSize }}
{{- if eq .Values.storage.kind "pvc" }}
- name: images
  persistentVolumeClaim:
    claimName: {{ .Values.storage.pvc.existingClaim | default (include "gateway.name" .) }}
{{- end }}
{{- if .Values.modelsFile }}
- name: models
  configMap:
    name: {{ include "gateway.name" . }}-models
{{- end }}
{{- end }}

{{/* TMPDIR must exist before the gateway uses it. */}}
{{- define "gateway.prepare" -}}
- name: scratch
  image: {{ include "gateway.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [mkdir, -p, -m, "0700", /scratch/tmp, /scratch/data]
  securityContext:
    {{- include "gateway.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: scratch, mountPath: /scratch}
{{- end }}
