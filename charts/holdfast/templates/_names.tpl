{{/* What things are called. */}}

{{- define "holdfast.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "holdfast.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "holdfast.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "holdfast.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "holdfast.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "holdfast.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "holdfast.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Where the proxy listens, as JSON: the variable's own form. */}}
{{- define "holdfast.listen" -}}
{{- if eq .Values.ipFamily "IPv4" -}}["0.0.0.0:8080"]
{{- else if eq .Values.ipFamily "IPv6" -}}["[::]:8080"]
{{- else -}}["0.0.0.0:8080", "[::]:8080"]
{{- end -}}
{{- end -}}

{{/* What the Service's port speaks, for gateways and meshes that ask. */}}
{{- define "holdfast.appProtocol" -}}
{{- $server := default dict .Values.config.server -}}
{{- if .Values.tls.existingSecret -}}https
{{- else if and (hasKey $server "h2c") (not $server.h2c) -}}http
{{- else -}}kubernetes.io/h2c
{{- end -}}
{{- end -}}
